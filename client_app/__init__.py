"""The Flower ClientApp: load the base model once, train an adapter, answer."""
