"""The stand-in provider server: OpenAI and ElevenLabs on one loopback port, with real small models behind."""
