"""An index of videos, searched by a sentence, a video or an embedding."""
