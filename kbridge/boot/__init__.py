"""What a guest's boot looks like on its console: a screen, the states that it shows, what went wrong."""
