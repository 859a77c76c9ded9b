"""What runs achieved: evaluations, comparisons, figures, reports."""
