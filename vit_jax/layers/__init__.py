"""What three or more models compute identically, one small file per idea."""
