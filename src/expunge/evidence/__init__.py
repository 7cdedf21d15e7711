"""What anybody can check without the service: audits from encoder outputs, log proofs, certificates. Pure functions."""
