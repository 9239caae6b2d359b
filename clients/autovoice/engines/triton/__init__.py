"""Triton as the engine. Nothing here is imported before a pipeline asks for a server."""
