"""From a recipe to its parts: where config meets models, data and the engine."""
