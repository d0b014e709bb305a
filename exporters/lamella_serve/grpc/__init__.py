"""The protocol over gRPC, beside the HTTP server."""
