"""An application that has used one of the peers until now."""
