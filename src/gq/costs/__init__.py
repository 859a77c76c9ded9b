"""What models cost: parameters, FLOPs and memory of transformers and of world models, and where they fit."""
