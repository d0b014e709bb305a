"""Why a law fails: the cause, the smallest input that shows it, and how values relate to those expected."""
