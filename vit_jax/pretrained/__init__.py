"""Networks whose trained weights people publish."""
