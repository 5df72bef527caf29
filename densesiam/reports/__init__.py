"""What people read and look at: pages, pictures, validations, predictions."""
