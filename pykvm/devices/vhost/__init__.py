"""What devices need whose work is done outside: vhost-user, child processes, polling."""
