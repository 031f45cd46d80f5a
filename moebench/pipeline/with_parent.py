"""Imported by the process that stages are forked from, before all else, for its effect: that process ends with the pipeline."""

from moebench.pipeline.guard import end_with_parent

end_with_parent()
