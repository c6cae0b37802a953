"""What the paper compares with: encoders, searches and editing methods of others."""
