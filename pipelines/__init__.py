"""KFP pipelines: what composes the components, how they compile, and how they run on a laptop."""
