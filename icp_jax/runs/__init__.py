"""From folder to folder: prune, resume, export, verify and convert."""
