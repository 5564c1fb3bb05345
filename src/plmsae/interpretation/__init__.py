"""What latents mean on proteins: active latents per residue."""
