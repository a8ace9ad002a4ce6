"""The paper: samplers, attention, allocation maps, objectives."""
