"""Language models over the OpenAI protocol, and the servers this process starts."""
