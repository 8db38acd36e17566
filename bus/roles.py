"""Pure. The roles that a holder of credentials can have on the bus; `bus.permissions` says what each may do."""

from typing import Literal, get_args

BusRole = Literal["frontend", "worker", "router", "planner", "component", "observer", "gateway", "tenant", "operator"]
ROLES: tuple[BusRole, ...] = get_args(BusRole)
PROCESSES: tuple[BusRole, ...] = ("frontend", "worker", "router", "planner", "component")
"""Roles that find streams and buckets as declared, and bury what they cannot handle."""
OWNERS: tuple[BusRole, ...] = ("frontend", "operator")
"""Roles that create and change streams; the others wait until they are there. Nobody but operators deletes any."""
ANSWERING: tuple[BusRole, ...] = ("frontend", "operator")
"""Roles that may acknowledge whatever the streams that they pull from hold (`bus.permissions`); others only what came
to them, over the connection that brought it."""
NAME_TAG = "name:"
ROLE_TAG = "role:"
"""What stands before name and role among the tags of credentials, which the server tells with each connection."""
