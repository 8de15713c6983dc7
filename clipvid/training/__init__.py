"""One visible loop on Lightning Fabric, resumable to the bit."""
