"""What is searched for: embeddings of queries, and filters of the videos."""
