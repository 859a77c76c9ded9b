"""Datasets: names, downloads, readers, samplers and buffers."""
