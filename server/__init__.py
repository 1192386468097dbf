"""The gRPC server around ``translator``."""
