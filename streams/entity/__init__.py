"""Whose row it is: windows of each entity's last events, and the fields that are made of them."""
