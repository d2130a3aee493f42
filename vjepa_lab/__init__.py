"""vjepa_lab"""
