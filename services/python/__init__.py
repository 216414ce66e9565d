"""What the public Python surface is made of."""
