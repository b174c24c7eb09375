"""A run from its recipe to its last step: built, resumed, looped, watched, saved."""
