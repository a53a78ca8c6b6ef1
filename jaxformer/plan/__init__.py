"""What a run would need, before it is paid for: its step compiled for devices that need not be here."""
