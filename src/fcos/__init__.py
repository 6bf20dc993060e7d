"""FCOS: fully convolutional one-stage object detection."""
