"""Recurrent layers on the CPU, against torch.nn and against a loop over time in torch."""
