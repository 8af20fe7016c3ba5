"""The agent's side: `fleet` decides who runs which session, `call` holds one live call."""
