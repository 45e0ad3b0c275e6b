"""What several tests share: tiny models, small stores, captures, trainings, servers."""
