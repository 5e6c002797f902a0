"""What make_executed.py steps beside the ops whose arguments are text."""
