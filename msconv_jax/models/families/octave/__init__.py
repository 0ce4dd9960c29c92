"""Networks with octave convolutions: OctResNet and OctMobileNet."""
