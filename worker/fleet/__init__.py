"""Who runs which session: record, admission, lease, keeper, reaper, drain and commands; light imports only."""
