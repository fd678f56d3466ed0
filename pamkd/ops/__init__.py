from pamkd.ops.mixed_cell import mixed_cell as mixed_cell
