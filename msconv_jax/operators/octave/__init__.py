"""Octave convolution (Chen et al., ICCV 2019): feature maps at two resolutions."""
