"""Recurrent layers on a GPU, the model of a step, and the programs (*.cu) that calibrate it."""
