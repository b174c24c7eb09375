"""The memory, time and cost of a recipe, before it is run."""

from supmim_scale.planner.answer import plan_recipe as plan

__all__ = ["plan"]
