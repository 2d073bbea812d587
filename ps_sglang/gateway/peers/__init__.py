"""The gateway processes behind one port: what they tell each other, so that they act as one."""
