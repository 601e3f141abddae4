"""Depthwise and separable convolutions on the CPU, against torch's."""
