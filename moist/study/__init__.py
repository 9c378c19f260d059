"""A study: trials asked for, run by workers, judged and told; its driver, and questions to it."""
