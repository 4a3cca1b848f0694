"""The user's own unlabeled images, embedded once, and references of words that are found in them."""
