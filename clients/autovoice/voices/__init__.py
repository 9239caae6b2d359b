"""Voices: the base voice, imported ones, and what they have in common."""
