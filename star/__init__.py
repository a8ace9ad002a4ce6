"""SpatioTemporal Adaptive Reward allocation (STAR, arXiv 2606.17979) for SD3-family text-to-image
models."""
