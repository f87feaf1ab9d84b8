"""Guest images built from `guests/`, shipped as package data."""
