"""Values as bytes: JSON, materializers, and artifacts for what is large."""
